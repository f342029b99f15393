/** Puts the stand-ins for Express and Fastify, which are not dependencies, into a project under their names. */
import * as fs from 'node:fs'
import * as path from 'node:path'
import type { Project } from '../../support/packed.ts'

export function installStandIns({ dir }: Project): void {
  for (const name of ['express', 'fastify']) {
    const to = path.join(dir, 'node_modules', name)
    fs.mkdirSync(to)
    for (const ending of ['.mjs', '.d.mts']) {
      fs.copyFileSync(path.join(import.meta.dirname, name + ending), path.join(to, `index${ending}`))
    }
    fs.writeFileSync(path.join(to, 'package.json'), JSON.stringify({ name, main: 'index.mjs', types: 'index.d.mts' }))
  }
}
