package machine

import (
	"os"
	"strconv"
	"strings"
)

// CPUTimes returns the busy and total clock ticks since boot, out of /proc/stat.
func CPUTimes() (busy, total uint64) {
	raw, _ := os.ReadFile("/proc/stat")
	return parseCPUTimes(string(raw))
}

func parseCPUTimes(stat string) (busy, total uint64) {
	line, _, _ := strings.Cut(stat, "\n")
	for i, field := range strings.Fields(line) {
		n, err := strconv.ParseUint(field, 10, 64)
		if i == 0 || i > 8 || err != nil { // the name; guest time is in user time already
			continue
		}
		total += n
		if i != 4 && i != 5 { // idle, iowait
			busy += n
		}
	}
	return busy, total
}

// Memory returns the total and the available memory in bytes.
func Memory() (total, available uint64) {
	raw, _ := os.ReadFile("/proc/meminfo")
	return parseMeminfo(string(raw), "MemTotal:"), parseMeminfo(string(raw), "MemAvailable:")
}

func parseMeminfo(info, key string) uint64 {
	for _, line := range strings.Split(info, "\n") {
		fields := strings.Fields(line)
		if len(fields) >= 2 && fields[0] == key {
			kib, _ := strconv.ParseUint(fields[1], 10, 64)
			return kib * 1024
		}
	}
	return 0
}

// CPUVendor returns the vendor id of the first processor.
func CPUVendor() string {
	raw, _ := os.ReadFile("/proc/cpuinfo")
	for _, line := range strings.Split(string(raw), "\n") {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "vendor_id" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
