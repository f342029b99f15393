/** The types of the stand-in for fastify: as much as docs/in-your-app.md uses. */
export interface Fastify {
  addHook(name: 'onClose', hook: () => Promise<void>): void
  post<Route extends { Params: object }>(
    path: string,
    handler: (request: { params: Route['Params'] }) => Promise<unknown>,
  ): void
  listen(options: { port: number }): Promise<unknown>
  close(): Promise<void>
}
export default function fastify(): Fastify
