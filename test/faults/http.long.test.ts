/** Faults in statements of every route: every way of failing. */
import { faultsOfHttp } from './http.suite.ts'

faultsOfHttp('all')
