package lab

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"time"

	"wardgate/esp"
)

// AEADSpeed is what one core reaches in MB/s of inner packets of n octets, nothing but the cipher:
// the limit that no tunnel on one core can pass.
type AEADSpeed struct {
	Raw       float64 // crypto/cipher, AES-GCM, sealing in place
	Seal      float64 // esp.Outbound.SealBatch: header, sequence number, padding and cipher
	OpenBatch float64 // esp.Inbound.OpenBatch
}

// MeasureAEAD measures AES-GCM with a key of the given bits on packets of n octets, each of the
// three for about the given time, in turns of a millisecond.
func MeasureAEAD(ctx context.Context, bits, n int, each time.Duration) (AEADSpeed, error) {
	const batch = 64
	key := make([]byte, bits/8+4)
	block, err := aes.NewCipher(key[:bits/8])
	if err != nil {
		return AEADSpeed{}, err
	}
	raw, err := cipher.NewGCM(block)
	if err != nil {
		return AEADSpeed{}, err
	}
	p := esp.Params{SPI: 256, Encr: esp.EncrAESGCM16, KeyBits: bits, ESN: true, Key: key}
	out, err := esp.NewOutbound(p)
	if err != nil {
		return AEADSpeed{}, err
	}
	in, err := esp.NewInbound(p)
	if err != nil {
		return AEADSpeed{}, err
	}
	defer out.Close()
	defer in.Close()
	plain := make([]byte, n)
	plain[0], plain[2], plain[3] = 0x45, byte(n>>8), byte(n) // an IPv4 header as far as anybody looks
	pkts := make([]esp.Packet, batch)
	for i := range pkts {
		pkts[i].Buf = make([]byte, out.Headroom()+n+out.Tailroom())
		copy(pkts[i].Buf[out.Headroom():], plain)
	}
	var spent [3]time.Duration
	var packets int
	nonce, room := make([]byte, 12), make([]byte, n+raw.Overhead())
	for packets == 0 || min(spent[0], spent[1], spent[2]) < each {
		if ctx.Err() != nil {
			return AEADSpeed{}, ctx.Err()
		}
		at := time.Now()
		for range batch {
			raw.Seal(room[:0], nonce, room[:n], key[:12])
		}
		spent[0] += time.Since(at)
		for i := range pkts { // what was opened lies where it was sealed from
			pkts[i].Off, pkts[i].Len, pkts[i].Next = out.Headroom(), n, esp.NextIPv4
		}
		at = time.Now()
		if k := out.SealBatch(pkts); k != batch {
			return AEADSpeed{}, fmt.Errorf("lab: sealed %d of %d packets: %w", k, batch, pkts[0].Err)
		}
		spent[1] += time.Since(at)
		at = time.Now()
		if k := in.OpenBatch(pkts); k != batch {
			return AEADSpeed{}, fmt.Errorf("lab: opened %d of %d packets: %w", k, batch, pkts[0].Err)
		}
		spent[2] += time.Since(at)
		packets += batch
	}
	rate := func(d time.Duration) float64 { return float64(packets*n) / 1e6 / d.Seconds() }
	return AEADSpeed{rate(spent[0]), rate(spent[1]), rate(spent[2])}, nil
}
