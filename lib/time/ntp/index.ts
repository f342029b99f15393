/** What others use of this room. */

export { type Measurement, NTP_SERVERS, type Ntp, type NtpOptions, ntp, type ServerReport } from './ntp.ts'
