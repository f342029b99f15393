/** The exports of this folder. */

export { claimRouter } from './claims.ts'
export { eventRouter } from './events.ts'
export { pollRouter } from './group-consumers.ts'
export { groupRouter } from './groups.ts'
export { healthRouter } from './health.ts'
export { leaderRouter } from './leaders.ts'
export { lockRouter } from './locks.ts'
export { scheduleRouter } from './schedules.ts'
export { streamRouter } from './streams.ts'
export { taskRouter } from './tasks.ts'
export { tickRouter } from './tick.ts'
export { recordArrival, timeRouter } from './time.ts'
