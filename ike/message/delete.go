package message

import "encoding/binary"

// Delete is the Delete payload (RFC 7296, section 3.11).
type Delete struct {
	Generic
	Protocol ProtocolID // IKE, AH or ESP
	SPIs     []uint32   // AH, ESP: those that the sender receives on; IKE: none
}

// PayloadType implements Payload.
func (p *Delete) PayloadType() PayloadType { return PayloadDelete }

// spiSizeOf returns the size of an SPI in a Delete payload, -1 for a protocol without SAs.
func spiSizeOf(p ProtocolID) int {
	switch p {
	case ProtocolIKE:
		return 0 // the SPIs are in the header
	case ProtocolAH, ProtocolESP:
		return 4
	default:
		return -1
	}
}

func parseDelete(g Generic, r *reader) *Delete {
	p := &Delete{Generic: g, Protocol: ProtocolID(r.u8("the protocol ID"))}
	size := int(r.u8("the SPI size"))
	count := int(r.u16("the number of SPIs"))
	switch want := spiSizeOf(p.Protocol); {
	case want < 0:
		r.fail("protocol ID", "1 (IKE), 2 (AH) or 3 (ESP)", int(p.Protocol))
	case size != want:
		r.fail("SPI size", itoa(want)+" for this protocol", size)
	case size == 0 && count != 0:
		r.fail("number of SPIs", "0 for the IKE SA", count)
	case len(r.b) != size*count:
		r.fail("octets of SPIs", itoa(size*count), len(r.b))
	}
	if !r.limit("SPIs", count, MaxDeleteSPIs) || count == 0 {
		return p
	}
	p.SPIs = make([]uint32, count)
	for i := range p.SPIs {
		p.SPIs[i] = r.u32("an SPI")
	}
	return p
}

func (p *Delete) appendBody(dst []byte) ([]byte, error) {
	size := spiSizeOf(p.Protocol)
	if size < 0 {
		return nil, &EncodeError{Payload: PayloadDelete, Field: "protocol ID", Want: "IKE, AH or ESP", Got: int(p.Protocol)}
	}
	if size == 0 && len(p.SPIs) > 0 || len(p.SPIs) > MaxDeleteSPIs {
		return nil, &EncodeError{Payload: PayloadDelete, Field: "number of SPIs", Want: "none for IKE, else at most 1024", Got: len(p.SPIs)}
	}
	dst = append(dst, byte(p.Protocol), byte(size))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(p.SPIs)))
	for _, spi := range p.SPIs {
		dst = binary.BigEndian.AppendUint32(dst, spi)
	}
	return dst, nil
}
