// Package kernel tells the Linux kernel what the router decided: routes into the TUN device, the
// nftables table "inet wardgate", and the few sysctls that forwarding needs. It is a second,
// independent wall behind the daemon's own policy decision, and it is built to hold when the
// first one is gone:
//
//   - Everything that belongs to a remote facility (State.Remotes) may leave the machine through
//     the TUN device only. Table and unreachable routes are not tied to the daemon's life: when
//     the daemon dies the TUN device goes, its routes go with it, and what remains refuses the
//     traffic instead of sending it in the clear along the default route.
//   - A packet that came out of a tunnel may go to an address of a local zone by an interface of
//     that zone, and nowhere else: not into another tunnel, not to the router itself, not out of
//     the WAN interface. A packet may go into a tunnel only if it came from a zone's address by
//     that zone's interface.
//   - VPN traffic is taken out of connection tracking (notrack), so that NAT rules which the
//     facility's administrator wrote for ordinary traffic never rewrite it, in either direction.
//     An administrator's own filter rules still apply; they see the state "untracked".
//
// Our rules only ever drop or let continue. A drop of one nftables table is final for the packet
// whatever the other tables say, so no rule of the administrator's can open what is shut here.
// What the table cannot survive is being deleted (nft flush ruleset, as a restart of Debian's
// nftables.service does): Watch notices that and puts it back.
//
// The package uses netlink only and starts no process. It knows no policy: it is given plain data.
package kernel
