/** An object that must learn when a session ends. */
export interface Dependent {
  /** Called once, when the connection has ended or is no longer trusted. */
  connectionLost(error: Error): void
  /** Whether it only listens: then the connection may be replaced by another. @default false */
  readonly listens?: boolean
}
