// As much of Express as docs/in-your-app.md uses, since Express is not a dependency: paths with parameters, JSON, listen.
import { createServer } from 'node:http'

export default function express() {
  const routes = []
  return {
    post: (path, handler) =>
      routes.push({ path: new RegExp(`^${path.replaceAll(/:(\w+)/g, '(?<$1>[^/]+)')}$`), handler }),
    listen: (port) =>
      createServer(async (incoming, outgoing) => {
        const response = {
          status: (code) => Object.assign(response, { code }),
          json(body) {
            outgoing.writeHead(response.code ?? 200, { 'Content-Type': 'application/json' }).end(JSON.stringify(body))
          },
        }
        const route = routes.find(({ path }) => incoming.method === 'POST' && path.test(incoming.url))
        if (!route) return response.status(404).json({})
        const params = route.path.exec(incoming.url).groups
        await route.handler({ params }, response).catch((error) => response.status(500).json({ error: String(error) }))
      }).listen(port),
  }
}
