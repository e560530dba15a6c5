package tun

import "errors"

var (
	// ErrClosed: the device was closed; ReadBatch and WriteBatch return it from then on.
	ErrClosed = errors.New("tun: device is closed")

	// ErrNoHeadroom: a packet given to WriteBatch has fewer than VirtioHeaderLen octets before it,
	// or lies outside its buffer.
	ErrNoHeadroom = errors.New("tun: packet has too little room in front of it in its buffer")

	// ErrNotIP: a packet given to WriteBatch is neither IPv4 nor IPv6.
	ErrNotIP = errors.New("tun: packet is neither IPv4 nor IPv6")

	// ErrBufferSize: ReadBatch was given no buffers, or offsets or sizes that do not fit them.
	ErrBufferSize = errors.New("tun: buffers do not fit")
)

// Errors of super-packets that the kernel handed over: counted, never returned by a Queue.
var (
	errHeader   = errors.New("tun: virtio header does not fit the packet")
	errGSOType  = errors.New("tun: virtio header names an offload that was not asked for")
	errTooSmall = errors.New("tun: segment is larger than the caller's buffer")
)
