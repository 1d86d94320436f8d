// image/machine_applets.ts: the many names of busybox, and a guest's programs of packages, which come before them.
//
// busybox is one program that answers to some 270 names, each a link to it. Where packages have a program of such a
// name, in whichever folder, that one is meant. Not so where only busybox's fits what else the guest has: its init, who
// speaks to it, and who reads our lists of modules. busybox's shell knows the names by itself and looks at no folder
// for them, so that at a prompt they are aliases of the packages' programs.

/** Folders of programs, as PATH has them. */
const FOLDERS: readonly string[] = ['usr/local/sbin', 'usr/local/bin', 'usr/sbin', 'usr/bin', 'sbin', 'bin']
/** Always busybox's: 'init' is process 1, and these two hear it or each other. */
export const OWN_APPLETS: readonly string[] = ['init', 'poweroff', 'reboot', 'halt', 'modprobe']
/** Parts of the shell: a program of that name does nothing else. */
const OF_SHELL = /^(\[+|ash|busybox|echo|false|kill|printf|pwd|sh|test|true)$/

/** A symbolic link: where it is, and what it leads to. */
export type AppletLink = readonly [path: string, target: string]

/** Names for each thing that busybox does, where Debian has them: from what its `--list-full` would say. */
export function appletsOf(list: string): string[] {
  return list.split('\n').map((line) => line.trim().replace(/^\//, ''))
    .filter((line) => /^(usr\/)?s?bin\/[\w[.-]+$/.test(line) && line !== 'bin/busybox')
}

/**
 * The links that a tree of files lacks: `has` says if it has a path. They lead to `busybox`, or to the tree's own
 * program of that name in another folder.
 */
export function appletLinks(applets: readonly string[], has: (path: string) => boolean, busybox: string): AppletLink[] {
  return applets.filter((path) => !has(path)).map((path) => [path, programOf(path, has) ?? busybox])
}

/** What makes busybox's shell call a tree's programs: its $ENV. Empty if there are none. */
export function aliasesOfPrograms(applets: readonly string[], has: (path: string) => boolean): string {
  return applets.filter((path) => !OF_SHELL.test(nameOf(path)) && !OWN_APPLETS.includes(nameOf(path)))
    .map((path) => [nameOf(path), programOf(path, has)]).filter(([, program]) => program !== undefined)
    .map(([name, program]) => `alias ${name}=${program}\n`).join('')
}

function programOf(path: string, has: (path: string) => boolean): string | undefined {
  const folder = FOLDERS.find((one) => has(`${one}/${nameOf(path)}`))
  return folder === undefined ? undefined : `/${folder}/${nameOf(path)}`
}

function nameOf(path: string): string { return path.slice(path.lastIndexOf('/') + 1) }
