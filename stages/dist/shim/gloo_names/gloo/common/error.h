// c10d's ProcessGroupGloo.hpp includes this; nothing of it is used there.
#pragma once
