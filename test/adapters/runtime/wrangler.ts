/** The wrangler.jsonc that is deployed, unchanged or with another Worker or other variables, and wrangler's bundle of it. */
import { execFile } from 'node:child_process'
import * as fs from 'node:fs'
import { createRequire } from 'node:module'
import * as os from 'node:os'
import * as path from 'node:path'
import { promisify } from 'node:util'
import { gzipSync } from 'node:zlib'
import { environmentOf, installPackages } from '../../tools/packages.ts'

const CLOUD = path.resolve(import.meta.dirname, '../../../infra/cloudflare')
const CONFIG = path.join(CLOUD, 'wrangler.jsonc')

/** What the tests change in a wrangler.jsonc. */
interface Config {
  main?: string
  hyperdrive?: object[]
  vars?: Record<string, string>
}

/** What the tests use of the package wrangler, which is installed in infra/cloudflare, when it is first needed. */
interface Wrangler {
  experimental_readRawConfig(from: { config: string }): { rawConfig: Config }
  createTestHarness(settings: { workers: { configPath: string }[] }): Harness
}

/** A Worker in workerd. */
export interface Harness {
  listen(): Promise<{ url: URL }>
  fetch(path: string, init: RequestInit): Promise<Response>
  getWorker(): { scheduled(event: { cron: string; scheduledTime: Date }): Promise<{ outcome: string }> }
  getLogs(): { message: string }[]
  close(): Promise<void>
}

/** Downloads wrangler and workerd, unless they are there. A test file does so in a hook, which has the time for it. */
export const installWrangler = () => installPackages(CLOUD)

export async function wrangler(): Promise<Wrangler> {
  await installWrangler()
  return createRequire(path.join(CLOUD, 'package.json'))('wrangler')
}

/** Calls `work` with a changed configuration, and removes it. Its file is beside the original, because paths in it are relative. */
export async function configured<T>(
  change: (config: Config) => Config,
  work: (file: string) => Promise<T>,
): Promise<T> {
  const { experimental_readRawConfig } = await wrangler()
  const file = path.join(CLOUD, `.test-${process.pid}-${Math.random().toString(36).slice(2)}.json`)
  fs.writeFileSync(file, JSON.stringify(change(experimental_readRawConfig({ config: CONFIG }).rawConfig)))
  try {
    return await work(file)
  } finally {
    fs.rmSync(file)
  }
}

/** What wrangler made of a Worker without uploading it. */
export interface Packed {
  printed: string
  /** The weight of its scripts, in bytes of gzip. */
  bytes: number
  /** The paths of the files that are in them. */
  sources: string[]
}

/** Packs a Worker as `wrangler deploy` would. @param entry  instead of the one that is deployed. */
export async function dryRun(entry?: string): Promise<Packed> {
  if (entry) return configured((config) => ({ ...config, main: entry }), packed)
  return packed(CONFIG)
}

async function packed(config: string): Promise<Packed> {
  await installWrangler()
  const out = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-worker-'))
  try {
    const args = ['deploy', '--dry-run', '-c', config, '--outdir', out]
    const env = { ...environmentOf(CLOUD), WRANGLER_SEND_METRICS: 'false', NO_COLOR: '1' }
    const { stdout, stderr } = await promisify(execFile)('wrangler', args, { env })
    const scripts = fs.readdirSync(out).filter((file) => file.endsWith('.js'))
    const bytes = scripts.reduce((sum, file) => sum + gzipSync(fs.readFileSync(path.join(out, file))).length, 0)
    const maps = scripts.map((file) => fs.readFileSync(path.join(out, `${file}.map`), 'utf8'))
    const sources = maps.flatMap((map) => (JSON.parse(map) as { sources: string[] }).sources)
    return { printed: stdout + stderr, bytes, sources }
  } finally {
    fs.rmSync(out, { recursive: true, force: true })
  }
}
