/**
 * A project that has the package as users get it: packed, and unpacked into its `node_modules`.
 *
 * It is packed from a copy, so that nothing is written to the work tree. Its dependencies are links to the installed ones: no network.
 */
import { execFile } from 'node:child_process'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)
const ROOT = path.resolve(import.meta.dirname, '../..')
const { version, dependencies, files } = JSON.parse(fs.readFileSync(path.join(ROOT, 'package.json'), 'utf8'))

export interface Project extends Disposable {
  /** The folder of the project. */
  dir: string
  /** A folder above it, which is removed with it. */
  folder: string
  /** Files of the package, relative to its root. */
  packed: string[]
  /** The environment of its programs: this Node, and nothing else. */
  env: Record<string, string>
  write(file: string, text: string): void
  /** Links a package of this repository into the project. */
  link(name: string): void
  /** Runs a program in the project, on the same Node; if it fails, rejects with everything that it printed. */
  run(command: string, args: string[], env?: Record<string, string>): Promise<string>
}

/** Packs the package and makes the project: some seconds. */
export async function packedProject(): Promise<Project> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lockstep-package-'))
  fs.chmodSync(folder, 0o755) // the embedded PostgreSQL may run as another user
  const copy = path.join(folder, 'copy')
  const included = files.filter((file: string) => file !== 'dist' && !file.startsWith('!'))
  const sources = [
    'bin',
    'lib',
    'functions',
    'db',
    'package.json',
    'tsconfig.json',
    'tsconfig.build.json',
    'README.md',
    'LICENSE',
  ]
  for (const each of [...sources, ...included]) {
    if (!fs.existsSync(path.join(copy, each)))
      fs.cpSync(path.join(ROOT, each), path.join(copy, each), { recursive: true })
  }
  fs.symlinkSync(path.join(ROOT, 'node_modules'), path.join(copy, 'node_modules'))
  await saying('npm', ['pack', '--offline', '--pack-destination', folder], { cwd: copy })

  const dir = path.join(folder, 'project')
  const installed = path.join(dir, 'node_modules', 'lockstep')
  fs.mkdirSync(path.join(dir, 'node_modules', '.bin'), { recursive: true })
  await saying('tar', ['-xzf', `lockstep-${version}.tgz`], { cwd: folder })
  fs.renameSync(path.join(folder, 'package'), installed)
  const packed = fs
    .readdirSync(installed, { recursive: true, encoding: 'utf8' })
    .filter((file) => !fs.statSync(path.join(installed, file)).isDirectory())

  const write = (file: string, text: string) => fs.writeFileSync(path.join(dir, file), text)
  function link(name: string): void {
    const at = path.join(dir, 'node_modules', name)
    fs.mkdirSync(path.dirname(at), { recursive: true })
    fs.symlinkSync(path.join(ROOT, 'node_modules', name), at)
  }
  for (const name of [...Object.keys(dependencies), '@types/node']) link(name)
  // npm does this for `bin`
  const { bin } = JSON.parse(fs.readFileSync(path.join(installed, 'package.json'), 'utf8'))
  fs.chmodSync(path.join(installed, bin.lockstep), 0o755)
  fs.symlinkSync(path.join('..', 'lockstep', bin.lockstep), path.join(dir, 'node_modules', '.bin', 'lockstep'))
  write('package.json', JSON.stringify({ type: 'module' }))

  const env = { PATH: [path.dirname(process.execPath), process.env.PATH].join(path.delimiter) }
  return {
    dir,
    folder,
    packed,
    env,
    write,
    link,
    run: (command, args, more = {}) => saying(command, args, { cwd: dir, env: { ...env, ...more } }),
    [Symbol.dispose]: () => fs.rmSync(folder, { recursive: true, force: true }),
  }
}

/** Runs a program; if it fails, rejects with everything that it printed. */
export async function saying(command: string, args: string[], options: { cwd: string; env?: NodeJS.ProcessEnv }) {
  const { stdout } = await run(command, args, options).catch((error) => {
    throw new Error(`${command} ${args.join(' ')}: ${error.stdout}${error.stderr}`)
  })
  return stdout
}
