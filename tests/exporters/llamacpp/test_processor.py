"""What /proc/cpuinfo says of a processor, and what makes it another one."""

from __future__ import annotations

from lowrank_export.exporters.llamacpp.processor import parse_cpuinfo, this_processor

X86 = """processor\t: 0
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8488C
cpu MHz\t\t: 2400.000
flags\t\t: fpu avx2 amx_int8
bogomips\t: 4800.00
"""
ARM = """processor\t: 0
Features\t: fp asimd asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0c
"""


def test_x86() -> None:
    found = parse_cpuinfo(X86, "x86_64")
    assert found.name == "Intel(R) Xeon(R) Platinum 8488C" and found.machine == "x86_64"
    assert found.features == {"fpu", "avx2", "amx_int8"}


def test_arm() -> None:
    found = parse_cpuinfo(ARM, "aarch64")
    assert found.name == "cpu implementer: 0x41; cpu part: 0xd0c"
    assert found.features == {"fp", "asimd", "asimddp"}


def test_identity_follows_the_kind_and_not_the_moment() -> None:
    identity = parse_cpuinfo(X86, "x86_64").identity
    assert parse_cpuinfo(X86.replace("2400", "3100").replace("4800", "4801") * 2, "x86_64").identity == identity
    for old, new in (("amx_int8", "avx512f"), ("143", "106"), ("8488C", "8375C")):
        assert parse_cpuinfo(X86.replace(old, new), "x86_64").identity != identity


def test_this_one_is_described() -> None:
    found = this_processor()
    assert found.name and found.machine and found.identity
