/** Faults in statements of every verb: every way of failing, by every verb. */
import { faultsOfVerbs } from './verbs.suite.ts'

faultsOfVerbs('all')
