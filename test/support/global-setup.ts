/**
 * The database server of a test run, and on it a template that `freshDatabase` copies: migrated once.
 *
 * TEST_DATABASE chooses: `url` (DATABASE_URL, whose role must be allowed to create databases), `testcontainers`,
 * `embedded`, or `auto` (default): the first of them that is available. It is a real PostgreSQL in each case. TEST_POSTGRES, the
 * folder of a package with binaries, makes the embedded one another major version (tools/matrix.ts).
 */

import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import * as fs from 'node:fs'
import * as path from 'node:path'
import pg from 'pg'
import type { TestProject } from 'vitest/node'
import { startPostgres } from '../../lib/setup/embedded-postgres.ts'
import { migrate } from '../../lib/setup/migrate.ts'
import { installPackages } from '../tools/packages.ts'
import { BINARIES } from './postgres-majors.ts'

declare module 'vitest' {
  export interface ProvidedContext {
    /** The server's connection string, to a database that always exists. */
    serverUrl: string
    /** Name of the migrated database to copy. */
    template: string
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const since = performance.now()
  const server = await chosenServer()
  const template = `lockstep_template_${randomBytes(4).toString('hex')}`
  const url = new URL(server.url)
  url.pathname = `/${template}`
  try {
    await statement(server.url, `create database ${template}`)
    await migrate(url.href)
    // no connections, not even autovacuum's: a copy would have to wait for them
    await statement(server.url, `alter database ${template} allow_connections false`)
  } catch (error) {
    await server.stop()
    throw error
  }
  console.log(`Test database: ${server.what}, ready in ${Math.round(performance.now() - since)} ms`)
  project.provide('serverUrl', server.url)
  project.provide('template', template)
  return async () => {
    try {
      await statement(server.url, `drop database ${template} with (force)`)
    } finally {
      await server.stop()
    }
  }
}

interface Server {
  url: string
  what: string
  stop(): Promise<unknown>
}

async function chosenServer(): Promise<Server> {
  const choice = process.env.TEST_DATABASE ?? (BINARIES.binaries ? 'embedded' : 'auto')
  if (!['auto', 'url', 'testcontainers', 'embedded'].includes(choice)) {
    throw new Error(`TEST_DATABASE is auto, url, testcontainers or embedded, not ${choice}`)
  }
  const url = process.env.DATABASE_URL
  if (choice === 'url' && !url) throw new Error('TEST_DATABASE=url needs DATABASE_URL')
  if (url && (choice === 'auto' || choice === 'url')) return { url, what: 'DATABASE_URL', stop: async () => {} }
  if (choice === 'testcontainers') return (await containers()).startContainer()
  if (choice === 'auto' && dockerAnswers()) {
    const { dockerAnswers: toThem, startContainer } = await containers()
    if (await toThem()) return startContainer()
  }
  const server = await startPostgres(BINARIES)
  const major = fs.readFileSync(path.join(server.dir, 'PG_VERSION'), 'utf8').trim()
  return { url: server.url, what: `embedded PostgreSQL ${major} in ${server.dir}`, stop: server.stop }
}

/** Whether the command of Docker finds a server, so that Testcontainers are not downloaded in vain. The limit is for a hung socket. */
function dockerAnswers(): boolean {
  const asked = spawnSync('docker', ['version', '--format', '{{.Server.Version}}'], { stdio: 'ignore', timeout: 5_000 })
  return asked.status === 0
}

/** Testcontainers, which are packages of their own. */
async function containers(): Promise<{ dockerAnswers(): Promise<boolean>; startContainer(): Promise<Server> }> {
  await installPackages('test/containers')
  return import(new URL('../containers/postgres.ts', import.meta.url).href)
}

async function statement(url: string, text: string): Promise<void> {
  const client = new pg.Client(url)
  await client.connect()
  try {
    await client.query(text)
  } finally {
    await client.end()
  }
}
