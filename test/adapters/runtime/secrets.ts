/** The part of AWS Secrets Manager that its own client calls: a server on loopback that returns texts. */
import { once } from 'node:events'
import * as http from 'node:http'
import type { AddressInfo } from 'node:net'

export interface Secrets extends AsyncDisposable {
  /** What a function needs to find it. */
  env: Record<string, string>
  /** How often each was asked for. */
  asked: Map<string, number>
  put(arn: string, value: string | object): void
}

export async function secretsManager(): Promise<Secrets> {
  const texts = new Map<string, string>()
  const asked = new Map<string, number>()
  const server = http.createServer(async (request, response) => {
    let body = ''
    for await (const bytes of request) body += bytes
    const { SecretId } = JSON.parse(body)
    asked.set(SecretId, (asked.get(SecretId) ?? 0) + 1)
    const text = texts.get(SecretId)
    response.setHeader('Content-Type', 'application/x-amz-json-1.1')
    const known = request.headers['x-amz-target'] === 'secretsmanager.GetSecretValue' && text !== undefined
    if (known) return response.end(JSON.stringify({ ARN: SecretId, Name: SecretId, SecretString: text }))
    response.statusCode = 400
    return response.end(JSON.stringify({ __type: 'ResourceNotFoundException', Message: 'There is no such secret' }))
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
    put: (arn, value) => void texts.set(arn, typeof value === 'string' ? value : JSON.stringify(value)),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      server.close()
    },
  }
}
