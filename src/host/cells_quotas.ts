// host/cells_quotas.ts: the quotas of a process's volumes: one for each, while a guest has it.

import { openQuota } from '../services/file/open_quota.ts'
import type { MountedVolume } from './protocol.ts'

/** Quotas by the folders of their volumes, as a cell is granted them. */
export type OpenedQuotas = ReadonlyMap<string, SharedArrayBuffer>

/** The quotas of a process. */
export class Quotas {
  readonly #quotas = new Map<string, { readonly shared: Promise<SharedArrayBuffer>; users: number }>()

  /**
   * Those of a guest's volumes: what is in a volume is counted when its first guest comes. undefined: it has none that
   * is bounded. To be released in any case. Rejects with a system error.
   */
  open(volumes: readonly MountedVolume[]): Promise<OpenedQuotas> | undefined {
    const opened = volumes.filter(isBounded).map(({ path, sizeBytes }) => {
      const quota = this.#quotas.get(path) ?? { shared: openQuota(path, sizeBytes!), users: 0 }
      quota.users++
      this.#quotas.set(path, quota)
      return { path, quota }
    })
    return opened.length === 0 ? undefined : settled(opened.map(({ path, quota }) => [path, quota.shared] as const))
  }

  release(volumes: readonly MountedVolume[]): void {
    for (const { path } of volumes.filter(isBounded)) {
      const quota = this.#quotas.get(path)
      if (quota !== undefined && --quota.users === 0) this.#quotas.delete(path)
    }
  }
}

async function settled(shared: readonly (readonly [string, Promise<SharedArrayBuffer>])[]): Promise<OpenedQuotas> {
  const all = await Promise.allSettled(shared.map(([, one]) => one))
  const bad = all.find(({ status }) => status === 'rejected')
  if (bad !== undefined) throw (bad as PromiseRejectedResult).reason
  return new Map(shared.map(([path], i) => [path, (all[i] as PromiseFulfilledResult<SharedArrayBuffer>).value]))
}

function isBounded({ sizeBytes }: MountedVolume): boolean {
  return sizeBytes !== undefined
}
