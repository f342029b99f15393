/** Faults in statements of every route: one way of failing. */
import { faultsOfHttp } from './http.suite.ts'

faultsOfHttp('short')
