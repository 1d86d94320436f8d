// image/credentials.ts: who we are for a registry, as other tools have written it down: ~/.docker/config.json.
//
// `docker login` and its likes write it. Per registry it has a name and a password or an identity token, or names a
// program, docker-credential-X, that keeps them. DOCKER_CONFIG names another folder. A secret is never in a message.

import { spawn } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { CellarError } from '../base/errors.ts'

/** A name and its password; or a token that an authorization server gives access for. */
export type Credentials =
  | { readonly username: string; readonly password: string; readonly identityToken?: undefined }
  | { readonly identityToken: string }

const HELPER = /^[A-Za-z0-9._-]+$/
const HELPER_MS_MAX = 30_000
const HELPER_BYTES_MAX = 65_536

const entry = z.object({
  auth: z.string().optional(), username: z.string().optional(), password: z.string().optional(),
  identitytoken: z.string().optional(),
})
const file = z.object({
  auths: z.record(z.string(), entry).optional(),
  credHelpers: z.record(z.string(), z.string()).optional(),
  credsStore: z.string().optional(),
})
const helped = z.object({ Username: z.string(), Secret: z.string() })

/** What to say to `registry`; undefined if nothing is known. Throws REGISTRY_FAILED if the file can't be used. */
export async function credentialsFor(registry: string, env: NodeJS.ProcessEnv = process.env):
Promise<Credentials | undefined> {
  const path = join(env.DOCKER_CONFIG || join(env.HOME || homedir(), '.docker'), 'config.json')
  const fail = (why: string): never => { throw new CellarError('REGISTRY_FAILED', [registry, 'log in', why]) }
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    return code === 'ENOENT' || code === 'ENOTDIR' ? undefined : fail(message)
  }
  const parsed = file.safeParse(jsonOf(text))
  if (!parsed.success) return fail(`${path} isn't what docker login writes`)
  const { auths = {}, credHelpers = {}, credsStore } = parsed.data
  const keys = keysOf(registry)
  const helper = keys.map((key) => own(credHelpers, key)).find((one) => one !== undefined) ?? credsStore
  if (helper) {
    if (!HELPER.test(helper)) return fail(`${path} names a helper that can't be one`)
    for (const key of keys) {
      const found = await ask(`docker-credential-${helper}`, key, env).catch((error: Error) => fail(error.message))
      if (found !== undefined) return found
    }
  }
  for (const key of keys) {
    const found = own(auths, key)
    const credentials = found === undefined ? undefined : credentialsOf(found)
    if (credentials !== undefined) return credentials
  }
  return undefined
}

function keysOf(registry: string): string[] {
  const own = [registry, `https://${registry}`, `https://${registry}/v1/`, `https://${registry}/v2/`,
    `http://${registry}`]
  return registry === 'docker.io' ? ['https://index.docker.io/v1/', ...own] : own
}

function credentialsOf({ auth, username, password, identitytoken }: z.infer<typeof entry>): Credentials | undefined {
  if (identitytoken) return { identityToken: identitytoken }
  const decoded = auth === undefined ? '' : Buffer.from(auth, 'base64').toString('utf8')
  const colon = decoded.indexOf(':')
  if (colon > 0) return { username: decoded.slice(0, colon), password: decoded.slice(colon + 1).replace(/\0+$/, '') }
  return username && password !== undefined ? { username, password } : undefined
}

// What the helper has under this name. That it has nothing is told by its exit status, as all else is.
async function ask(program: string, key: string, env: NodeJS.ProcessEnv): Promise<Credentials | undefined> {
  const child = spawn(program, ['get'], {
    stdio: ['pipe', 'pipe', 'ignore'], timeout: HELPER_MS_MAX, killSignal: 'SIGKILL', env,
  })
  const ended = new Promise<number | null>((resolve, reject) => {
    child.on('error', reject)
    child.on('close', resolve)
  })
  child.stdin.on('error', () => {})
  child.stdin.end(`${key}\n`)
  const chunks: Buffer[] = []
  let size = 0
  child.stdout.on('data', (chunk: Buffer) => {
    size += chunk.length
    if (size <= HELPER_BYTES_MAX) chunks.push(chunk)
    else child.kill('SIGKILL')
  })
  if (await ended !== 0) return undefined
  const parsed = helped.safeParse(jsonOf(Buffer.concat(chunks).toString('utf8')))
  if (!parsed.success) throw new Error(`${program} answers with what isn't known`)
  const { Username: username, Secret: secret } = parsed.data
  return username === '<token>' ? { identityToken: secret } : { username, password: secret }
}

function own<T>(record: Readonly<Record<string, T>>, key: string): T | undefined {
  return Object.hasOwn(record, key) ? record[key] : undefined
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
