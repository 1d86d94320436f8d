// host/project_folder.ts: the folders of a project: ours above, the project's own below.
//
//   projects/P/            ours, 0711     the host works in here by path, as root where it is root: nothing that a
//     files/G/             ours, group P  taken-over process could put here may lead it elsewhere
//     logs/G/              P's            each guest's; what is in them is opened without following links
//     cache/               P's            the host never looks into it
//     snapshots/           P's            what lies in it is checked by its digest, and opened without following links
//     volumes/V/           P's            only ever entered by descriptor (volumes.ts)
//     machines/G/          P's            what machine G has written to the disks of its image
//
// Elsewhere: the walls that make the rest of the state folder unreachable (jail.ts).

import { chmodSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { ownFolder } from './jail.ts'
import type { Paths } from './paths.ts'

/** Makes what a project's processes need, as user `uid` if it has one of its own. */
export function makeProjectFolder(paths: Paths, project: string, uid: number | undefined): void {
  for (const folder of [paths.project(project), paths.logs(project), join(paths.project(project), 'files'),
    paths.volumes(project), paths.machines(project)]) {
    mkdirSync(folder, { recursive: true })
    // Others pass through to what is theirs, and see nothing on the way.
    chmodSync(folder, 0o711)
  }
  ownFolder(paths.cache(project), uid)
  ownFolder(paths.snapshots(project), uid)
}

/** Makes the folder of a machine's own disks. */
export function makeMachineFolder(paths: Paths, project: string, guest: string, uid: number | undefined): void {
  ownFolder(paths.machine(project, guest), uid)
}

/** Makes the folder of a guest's log. */
export function makeLogFolder(paths: Paths, project: string, guest: string, uid: number | undefined): void {
  ownFolder(join(paths.logs(project), guest), uid)
}
