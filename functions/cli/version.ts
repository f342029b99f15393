/** The version of this package, from its package.json: two folders up in the sources, three in `dist`. */
import { readFile } from 'node:fs/promises'

export async function version(): Promise<string> {
  for (const place of ['../../package.json', '../../../package.json']) {
    const text = await readFile(new URL(place, import.meta.url), 'utf8').catch(() => '{}')
    const { name, version } = JSON.parse(text)
    if (name === 'lockstep') return version
  }
  return 'unknown'
}
