#!/usr/bin/env node
/** The command: of the package its built form, and of a clone the source, which needs no build. */
import { existsSync } from 'node:fs'

const source = new URL('../functions/cli/index.ts', import.meta.url)
await import((existsSync(source) ? source : new URL('../dist/functions/cli/index.js', import.meta.url)).href)
