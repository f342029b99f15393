/** What is used of `ntp-client` 0.5.3, which has no types of its own. */
declare module 'ntp-client' {
  const ntpClient: {
    /** Milliseconds; of the module, read at each call. */
    ntpReplyTimeout: number
    getNetworkTime(
      server: string,
      port: number,
      callback: (error: Error | string | null, date: Date | null) => void,
    ): void
  }
  export default ntpClient
}
