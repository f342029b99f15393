/** All migrations, in order: `0001_lease`, … */
import * as fs from 'node:fs'
import * as path from 'node:path'

export const MIGRATIONS: readonly string[] = fs
  .readdirSync(path.join(import.meta.dirname, '../../db/migrations'))
  .filter((file) => file.endsWith('.sql'))
  .map((file) => file.slice(0, -'.sql'.length))
  .sort()
