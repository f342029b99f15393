/** What others use of this room. */

export type { Backoff, LeadWork } from './lead-loop.ts'
export { type CampaignOptions, Leaders, type LeadOptions, type Members, type TryCampaignOptions } from './leaders.ts'
export type { Candidate, ElectionState, Leader } from './observe.ts'
export type { Term } from './term.ts'
