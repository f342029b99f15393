/** The OpenAPI 3.1 document, made of the routes. */
import type { Fields } from './fields.ts'
import { type Route, type Router, responsesOf } from './route.ts'
import { components, type Field, type FieldError } from './schema.ts'

/**
 * Makes the document.
 *
 * @param head  what stands above the paths: `openapi`, `info`, `servers`.
 * @param tags  what each tag is; those that no route has are left out.
 * @param routers  by the path below which they answer.
 */
export function documentOf(
  head: object,
  tags: { readonly [name: string]: string },
  routers: readonly (readonly [path: string, Router])[],
): object {
  const paths: Record<string, Record<string, object>> = {}
  for (const [prefix, { routes }] of routers) {
    for (const route of routes) {
      const path = prefix + (route.path === '/' ? '' : route.path) || '/'
      paths[path] = { ...paths[path], [route.method]: operation(route) }
    }
  }
  const securitySchemes = { key: { type: 'http', scheme: 'bearer', bearerFormat: 'id.secret' } }
  const used = new Set(routers.flatMap(([, { routes }]) => routes.flatMap((route) => route.tags)))
  const described = Object.entries(tags).flatMap(([name, description]) => (used.has(name) ? { name, description } : []))
  return { ...head, tags: described, components: { securitySchemes, schemas: components(paths) }, paths }
}

function operation(route: Route): object {
  const { id, tags, summary, scope, params = {}, query = {}, headers = {}, body } = route
  const parameters = [
    ...parametersOf('path', params),
    ...parametersOf('query', query),
    ...parametersOf('header', headers),
  ]
  return {
    operationId: id,
    tags,
    security: scope || route.keyed ? [{ key: [] }] : [],
    summary,
    description: `${summary}. ${access(route)}`,
    ...(parameters.length > 0 && { parameters }),
    ...(body && {
      requestBody: { required: mustBeSent(body), content: { 'application/json': { schema: body.json } } },
    }),
    responses: responsesOf(route),
  }
}

function access({ scope, keyed, params, allNames }: Route): string {
  if (!scope) return keyed ? 'Any key will do' : 'Needs no key'
  const prefix = allNames ? ', and without a prefix' : params ? ', whose prefix the name begins with' : ''
  return `Needs a key with the scope \`${scope}\`${prefix}`
}

function parametersOf(where: 'path' | 'query' | 'header', fields: Fields): object[] {
  return Object.entries(fields).map(([name, { json, optional = false }]) => ({
    name,
    in: where,
    required: !optional,
    ...(json.description !== undefined && { description: json.description }),
    schema: json,
  }))
}

/** A request without a body is one with `{}`. */
function mustBeSent(body: Field<unknown>): boolean {
  const errors: FieldError[] = []
  body.read({}, '', errors)
  return errors.length > 0
}
