package cgroup

import (
	"fmt"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// io plans resources.blockIO: weights for the BFQ scheduler, or on v2 for iocost;
// rates in bytes or operations per second, zero means no limit.
func (p *planner) io(b *specs.LinuxBlockIO) {
	if b == nil {
		return
	}
	if b.Weight != nil && *b.Weight != 0 {
		p.weight("blockIO.weight", "", *b.Weight)
	}
	if n := b.LeafWeight; n != nil && *n != 0 {
		p.put(setting{field: "blockIO.leafWeight", value: *n, text: strconv.Itoa(int(*n))}, home{"blkio", "blkio.leaf_weight", ""})
	}
	for i, d := range b.WeightDevice {
		field, device := fmt.Sprintf("blockIO.weightDevice[%d]", i), fmt.Sprintf("%d:%d ", d.Major, d.Minor)
		if d.Weight != nil && *d.Weight != 0 {
			p.weight(field+".weight", device, *d.Weight)
		}
		if n := d.LeafWeight; n != nil && *n != 0 {
			p.put(setting{field: field + ".leafWeight", value: *n, text: device + strconv.Itoa(int(*n))}, home{"blkio", "blkio.leaf_weight_device", ""})
		}
	}
	p.rates("throttleReadBpsDevice", "read_bps", "rbps", b.ThrottleReadBpsDevice)
	p.rates("throttleWriteBpsDevice", "write_bps", "wbps", b.ThrottleWriteBpsDevice)
	p.rates("throttleReadIOPSDevice", "read_iops", "riops", b.ThrottleReadIOPSDevice)
	p.rates("throttleWriteIOPSDevice", "write_iops", "wiops", b.ThrottleWriteIOPSDevice)
}

// weight plans a weight for all devices, or for one ("8:0 ").
func (p *planner) weight(field, device string, w uint16) {
	suffix := ""
	if device != "" {
		suffix = "_device"
	}
	h := home{"blkio", "blkio.weight" + suffix, "io.bfq.weight"}
	if !p.v2("blkio") && !p.has("blkio", h.v1) {
		h.v1 = "blkio.bfq.weight" + suffix // Linux 5.0: CFQ is gone
	}
	text := strconv.Itoa(int(w))
	if p.v2("blkio") && !p.has("blkio", h.v2) {
		h.v2 = "io.weight" // 1..10000 where the field has 10..1000
		text = strconv.FormatUint(1+(uint64(max(w, 10))-10)*9999/990, 10)
	}
	p.put(setting{field: field, value: w, text: device + text}, h)
}

func (p *planner) rates(field, v1, v2 string, list []specs.LinuxThrottleDevice) {
	for i, d := range list {
		s := setting{field: fmt.Sprintf("blockIO.%s[%d]", field, i), value: fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate)}
		s.text = s.value.(string)
		if p.v2("blkio") {
			rate := "max"
			if d.Rate > 0 {
				rate = strconv.FormatUint(d.Rate, 10)
			}
			s.text = fmt.Sprintf("%d:%d %s=%s", d.Major, d.Minor, v2, rate)
		}
		p.put(s, home{"blkio", "blkio.throttle." + v1 + "_device", "io.max"})
	}
}
