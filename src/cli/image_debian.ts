// cli/image_debian.ts: `cellar image debian`: a small Debian guest, made of the distribution's packages with no root.

import { CellarError } from '../base/errors.ts'
import { makeDebian } from '../image/machine_debian.ts'
import type { Call } from './commands.ts'
import { makeAndGive, packageCache, sayStage, sizeOf } from './machine_image.ts'

/** `cellar image debian`. */
export async function imageDebian(call: Call): Promise<number> {
  const { flags } = call
  const packages = (flags['packages'] ?? []).flatMap((text) => text.split(',')).filter((name) => name !== '')
  const diskBytes = sizeOf(call, 'disk')
  if (diskBytes !== undefined && packages.length === 0) {
    throw new CellarError('USAGE', ['Cannot put nothing on a disk: name packages with --packages'])
  }
  return await makeAndGive(call, flags['name']?.[0] ?? 'debian', (store, scratch) => makeDebian(store, {
    source: { folder: packageCache(), release: flags['release']?.[0], mirror: flags['mirror']?.[0], say: sayStage },
    packages, diskBytes, scratch,
  }))
}
