// As much of Fastify as docs/in-your-app.md uses, since Fastify is not a dependency: the answer is what the handler returns, and
// the hooks of `close` run when the requests in progress have ended.
import { once } from 'node:events'
import { createServer } from 'node:http'

export default function fastify() {
  const routes = []
  const hooks = []
  const server = createServer(async (incoming, outgoing) => {
    const send = (code, body) =>
      outgoing.writeHead(code, { 'Content-Type': 'application/json' }).end(JSON.stringify(body))
    const route = routes.find(({ path }) => incoming.method === 'POST' && path.test(incoming.url))
    if (!route) return send(404, {})
    await route.handler({ params: route.path.exec(incoming.url).groups }).then(
      (body) => send(200, body),
      (error) => send(500, { error: String(error) }),
    )
  })
  return {
    addHook: (_, hook) => hooks.push(hook),
    post: (path, handler) =>
      routes.push({ path: new RegExp(`^${path.replaceAll(/:(\w+)/g, '(?<$1>[^/]+)')}$`), handler }),
    listen: ({ port }) => once(server.listen(port), 'listening'),
    async close() {
      server.close()
      await once(server, 'close')
      for (const hook of hooks) await hook()
    },
  }
}
