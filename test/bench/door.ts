/** The HTTP server in its own process, as in a deployment; ends with its parent. */

import { fork } from 'node:child_process'
import { once } from 'node:events'
import * as http from 'node:http'
import { fileURLToPath } from 'node:url'
import { serve } from '../../functions/adapters/node.ts'
import { createLockstep } from '../../lib/index.ts'
import { WrongResult } from './harness.ts'

/** Starts the server. Returns a client with keep-alive connections, on node:http, which costs less than fetch. */
export async function door(databaseUrl: string, connections: number) {
  const child = fork(fileURLToPath(import.meta.url), [databaseUrl])
  const [url] = (await once(child, 'message')) as [string]
  const agent = new http.Agent({ keepAlive: true, maxSockets: connections })

  const ask = (method: string, path: string, expected: number, body = '') =>
    new Promise<string>((resolve, reject) => {
      const headers = body === '' ? {} : { 'Content-Type': 'application/json', 'Content-Length': body.length }
      const request = http.request(`${url}${path}`, { method, agent, headers }, (response) => {
        let text = ''
        response.setEncoding('utf8')
        response.on('data', (chunk) => {
          text += chunk
        })
        response.on('end', () => {
          if (response.statusCode === expected) resolve(text)
          else reject(new WrongResult(`${method} ${path} answered ${response.statusCode}, not ${expected}: ${text}`))
        })
      })
      request.on('error', reject)
      request.end(body)
    })

  return {
    async acquireAndRelease(name: string): Promise<void> {
      const { token } = JSON.parse(await ask('POST', `/v1/locks/${name}`, 201, '{"ttlMs":15000}'))
      await ask('DELETE', `/v1/locks/${name}?token=${token}`, 204)
    },
    [Symbol.dispose]: () => {
      agent.destroy()
      child.disconnect()
    },
  }
}

if (import.meta.filename === process.argv[1]) {
  const lockstep = createLockstep({ connectionString: process.argv[2] ?? '', applicationName: 'bench-door' })
  const { url } = await serve({ lockstep, port: 0 })
  process.on('disconnect', () => process.exit())
  process.send?.(url)
}
