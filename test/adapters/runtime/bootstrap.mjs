/**
 * A client of Lambda's runtime API in plain Node. It does for a handler what AWS's own does (aws-lambda-ric, C++ and two minutes
 * to compile): it loads `_HANDLER`, asks for one invocation after another, and responds to each: whole, as a stream, or with an
 * error.
 */
import { once } from 'node:events'
import * as http from 'node:http'
import * as path from 'node:path'
import { pathToFileURL } from 'node:url'

const api = `http://${process.env.AWS_LAMBDA_RUNTIME_API}/2018-06-01/runtime`
const STREAMING = Symbol.for('aws.lambda.runtime.handler.streaming')

globalThis.awslambda = {
  streamifyResponse: (handler) => Object.assign(handler, { [STREAMING]: true }),
  HttpResponseStream: {
    // The status and the headers come before the body, followed by eight NULs.
    from(stream, head) {
      stream.write(JSON.stringify(head))
      stream.write(Buffer.alloc(8))
      return stream
    },
  },
}

const described = ({ name, message, stack }) => ({
  errorType: name,
  errorMessage: message,
  stackTrace: stack?.split('\n'),
})
const post = (where, body) => fetch(api + where, { method: 'POST', body: JSON.stringify(body) })

const [file, name] = process.env._HANDLER.split('.')
let handler
try {
  handler = (await import(pathToFileURL(path.join(process.env.LAMBDA_TASK_ROOT, `${file}.mjs`))))[name]
  if (typeof handler !== 'function') throw new Error(`There is no handler ${process.env._HANDLER}`)
} catch (error) {
  await post('/init/error', described(error))
  process.exit(1)
}

for (;;) {
  const next = await fetch(`${api}/invocation/next`)
  const event = await next.json()
  const id = next.headers.get('lambda-runtime-aws-request-id')
  const deadline = Number(next.headers.get('lambda-runtime-deadline-ms'))
  const context = { awsRequestId: id, getRemainingTimeInMillis: () => deadline - Date.now() }
  try {
    if (handler[STREAMING]) await streamed(id, (answer) => handler(event, answer, context))
    else await post(`/invocation/${id}/response`, (await handler(event, context)) ?? null)
  } catch (error) {
    await post(`/invocation/${id}/error`, described(error))
  }
}

async function streamed(id, work) {
  const headers = { 'Lambda-Runtime-Function-Response-Mode': 'streaming', 'Transfer-Encoding': 'chunked' }
  const request = http.request(`${api}/invocation/${id}/response`, { method: 'POST', headers })
  const answered = once(request, 'response')
  await work(request)
  const [response] = await answered
  response.resume()
}
