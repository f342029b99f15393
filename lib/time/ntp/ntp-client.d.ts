/** The part of `ntp-client` 0.5.3 that is used here; the package has no types. */
declare module 'ntp-client' {
  const ntpClient: {
    /** Milliseconds: a variable of the module, read at each call. */
    ntpReplyTimeout: number
    getNetworkTime(
      server: string,
      port: number,
      callback: (error: Error | string | null, date: Date | null) => void,
    ): void
  }
  export default ntpClient
}
