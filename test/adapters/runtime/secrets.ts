/** The part of AWS Secrets Manager that its client uses: a server on loopback that returns stored texts. */
import { once } from 'node:events'
import * as http from 'node:http'
import type { AddressInfo } from 'node:net'
import type pg from 'pg'

export interface Secrets extends AsyncDisposable {
  /** The environment variables with which a function finds it. */
  env: Record<string, string>
  /** The number of reads of each secret. */
  asked: Map<string, number>
  put(arn: string, value: string | object): void
  /** Until the secret is put again, it cannot be read: there is none, or no answer comes. */
  remove(arn: string, how: 'gone' | 'silent'): void
}

export async function secretsManager(): Promise<Secrets> {
  const texts = new Map<string, string>()
  const asked = new Map<string, number>()
  const silent = new Set<string>()
  const server = http.createServer(async (request, response) => {
    let body = ''
    for await (const bytes of request) body += bytes
    const { SecretId } = JSON.parse(body)
    asked.set(SecretId, (asked.get(SecretId) ?? 0) + 1)
    if (silent.has(SecretId)) return
    const text = texts.get(SecretId)
    response.setHeader('Content-Type', 'application/x-amz-json-1.1')
    const known = request.headers['x-amz-target'] === 'secretsmanager.GetSecretValue' && text !== undefined
    if (known) return void response.end(JSON.stringify({ ARN: SecretId, Name: SecretId, SecretString: text }))
    response.statusCode = 400
    response.end(JSON.stringify({ __type: 'ResourceNotFoundException', Message: 'There is no such secret' }))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    env: {
      AWS_ENDPOINT_URL_SECRETS_MANAGER: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      AWS_ACCESS_KEY_ID: 'none',
      AWS_SECRET_ACCESS_KEY: 'none',
    },
    asked,
    put(arn, value) {
      silent.delete(arn)
      texts.set(arn, typeof value === 'string' ? value : JSON.stringify(value))
    },
    remove(arn, how) {
      if (how === 'silent') silent.add(arn)
      texts.delete(arn)
    },
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      server.close()
    },
  }
}

/** Makes a server ask every user except `postgres` for a password. @param admin  of `postgres`. */
export async function askForPasswords(admin: pg.Pool): Promise<void> {
  const [{ hba_file: hba }] = (await admin.query('show hba_file')).rows
  const rules = 'host all postgres all trust\\nhost all all all scram-sha-256'
  await admin.query(`copy (select unnest(string_to_array(E'${rules}', E'\\n'))) to '${hba}'`)
  await admin.query('select pg_reload_conf()')
}
