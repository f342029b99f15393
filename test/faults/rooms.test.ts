/** Faults in statements of tasks, events and time: a few scenarios. */
import { faultsOfRooms } from './rooms.suite.ts'

faultsOfRooms('short')
