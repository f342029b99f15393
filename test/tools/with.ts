/**
 * Runs a command with the packages of a folder, and in that folder; installs them first if they are missing or older than their
 * lock file (packages.ts): `npm run cdk`, `npm run wrangler`, `npm run bench`, and others.
 *
 *     node test/tools/with.ts infra/aws -- cdk deploy -c database=rds
 *
 * The command may be one of the folder, of the project, or of the machine. Its exit code is passed on.
 */
import { spawn } from 'node:child_process'
import * as os from 'node:os'
import * as path from 'node:path'
import { environmentOf, installPackages } from './packages.ts'

const [folder, dashes, command, ...args] = process.argv.slice(2)
if (!folder || dashes !== '--' || !command) {
  console.error('node test/tools/with.ts <folder> -- <command> [arguments]')
  process.exit(2)
}
await installPackages(folder).catch((error) => {
  console.error((error as Error).message)
  process.exit(1)
})
const cwd = path.resolve(import.meta.dirname, '../..', folder)
const child = spawn(command, args, { cwd, env: environmentOf(folder), stdio: 'inherit' })
// A terminal sends Ctrl-C to both; the command decides what it means.
process.on('SIGINT', () => {})
for (const signal of ['SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.kill(signal))
child.once('error', (error) => {
  console.error(error.message)
  process.exit(127)
})
child.once('exit', (code, signal) => process.exit(code ?? 128 + os.constants.signals[signal as NodeJS.Signals]))
