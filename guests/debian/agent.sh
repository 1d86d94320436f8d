#!/bin/sh
# guests/debian/agent.sh: the agent, through which the host reaches into the guest; where there is none, nothing.
[ -x /etc/cellar/agent ] && exec /etc/cellar/agent
exec sleep 2147483647
