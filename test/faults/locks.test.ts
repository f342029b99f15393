/** Faults in statements of locks and leaders: a few scenarios. */
import { faultsOfLocks } from './locks.suite.ts'

faultsOfLocks('short')
