// Package tun is the TUN device: several queues, each with whole batches of IP packets in and out.
//
// The kernel hands over and takes super-packets of up to 64 kB with a virtio header in front
// (IFF_VNET_HDR): TCP and UDP runs of one flow that still need to be cut and to get checksums.
// [Queue.ReadBatch] cuts them into ordinary packets in the caller's buffers, [Queue.WriteBatch]
// glues runs of ordinary packets together again, so that both directions pay for one system call
// for dozens of packets. Neither changes what an end host sees: segmentation and coalescing do
// what Linux' own GSO and GRO do, and where gluing could lose anything (checksum wrong, options
// or window differ, fragments, flags other than ACK and PSH) the packet is written as it came.
//
// Packets of one flow keep their order, and a packet whose flow cannot be told (fragments,
// anything but TCP and UDP) keeps its place among all others.
//
// The package knows nothing of IPsec. Addresses, link state and routes are set elsewhere, by Name.
package tun
