# A base image out of a root file system that mmdebstrap made, for machines that reach no image registry.
FROM scratch
ADD rootfs.tar /
