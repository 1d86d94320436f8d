// host/jail_probe.ts: what runs in the place of a cell process to find out which walls stand (confinement.ts).

import { lockDown } from './jail_inside.ts'

process.stdout.write(JSON.stringify(lockDown()))
