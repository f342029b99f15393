/** Faults in statements of locks and leaders: the other scenarios. */
import { faultsOfLocks } from './locks.suite.ts'

faultsOfLocks('others')
