/** Faults in statements of tasks, events and time: the other scenarios. */
import { faultsOfRooms } from './rooms.suite.ts'

faultsOfRooms('others')
