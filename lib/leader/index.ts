/** What others use of this room. */

export type { Backoff, LeadWork } from './lead-loop.ts'
export { Leaders } from './leaders.ts'
export type { CampaignOptions, LeadOptions, TryCampaignOptions } from './options.ts'
export type { Candidate, ElectionState, Leader, Members } from './state.ts'
export type { Term } from './term.ts'
