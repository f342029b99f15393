/** The exclusive migration: a few of its tests. */
import { exclusiveMigrations } from './exclusive-migration.suite.ts'

exclusiveMigrations('short')
