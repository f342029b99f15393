/** `lockstep migrate`: brings the schema of a database to this version, and gives a role the rights that the functions need. */
import { type Blocker, described, type MigrateOptions, migrate } from '../../lib/setup/migrate.ts'
import type { Settings } from './environment.ts'
import { stopSignal } from './stop.ts'

/** @throws {Error} in one sentence: there is no DATABASE_URL, it was stopped, or the migration failed. */
export async function migrateCommand({ url }: Settings, options: MigrateOptions): Promise<void> {
  if (!url) throw new Error('migrate needs DATABASE_URL (the embedded PostgreSQL is migrated by start)')
  const stop = stopSignal()
  try {
    await migrateAndPrint(url, stop, options)
  } catch (error) {
    throw error === stop.reason ? new Error('stopped; the database works as before') : error
  }
}

/** Migrates, and prints what was done. A migration that is stopped while it waits undoes what it did. */
export async function migrateAndPrint(url: string, signal: AbortSignal, options: MigrateOptions = {}): Promise<void> {
  const verb = options.terminate ? 'ending' : 'waiting for'
  const onWait = (blockers: Blocker[]) => {
    for (const blocker of blockers) console.error(`${verb} ${described(blocker)}`)
  }
  const { applied, latest, granted, resumed } = await migrate(url, { ...options, signal, onWait })
  if (resumed) console.log('went on with a migration that had not come to its end')
  console.log(applied.length > 0 ? `migrations applied: ${applied.join(', ')}` : `schema is up to date (${latest})`)
  if (granted) console.log(`granted to ${options.grant}: what the functions need of ${counted(granted)}`)
}

/** The number of tables, sequences and functions that these rights are for. */
function counted(rights: string[]): string {
  const objects = [...new Set(rights.map((right) => right.replace(/^\w+ on | \(.*/g, '')))]
  const [sequences, functions] = ['sequence ', 'function '].map(
    (kind) => objects.filter((it) => it.startsWith(kind)).length,
  )
  return `${objects.filter((it) => !it.includes(' ')).length} tables, ${sequences} sequences and ${functions} functions`
}
