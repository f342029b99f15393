/** The exclusive migration: its other tests. */
import { exclusiveMigrations } from './exclusive-migration.suite.ts'

exclusiveMigrations('others')
