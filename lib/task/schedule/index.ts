/** The exports of this folder. */

export { type Schedule, type ScheduleOptions, Schedules } from './schedules.ts'
