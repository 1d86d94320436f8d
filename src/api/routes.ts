// api/routes.ts: the table of all routes, in the order in which paths are matched.

import { GUEST_ROUTES } from './guest_routes.ts'
import { HOST_ROUTES } from './host_routes.ts'
import { MIGRATION_ROUTES } from './migration_routes.ts'
import { openApi } from './openapi.ts'
import { ok, route, type Route } from './route.ts'
import { SNAPSHOT_ROUTES } from './snapshot_routes.ts'
import { STORED_ROUTES } from './stored_routes.ts'

const table: readonly Route[] = [
  ...HOST_ROUTES, ...GUEST_ROUTES, ...SNAPSHOT_ROUTES, ...STORED_ROUTES, ...MIGRATION_ROUTES,
]

const document: Route = route({
  method: 'GET', path: '/openapi.json', name: 'openapi', summary: 'This API, as OpenAPI 3.1', scope: 'none',
  answer: { status: 200, what: 'The document' },
  handle: ({ operator }) => {
    made ??= openApi(ROUTES, operator.host().version)
    return ok(made)
  },
})
let made: ReturnType<typeof openApi> | undefined

/** Every route. */
export const ROUTES: readonly Route[] = [...table, document]
